"""What can go wrong while training, as types that a user can catch."""


class NonFiniteLossError(RuntimeError):
    """The loss or a weight became NaN or infinite. The last checkpoint on disk is from before."""


class LocalizationWarning(UserWarning):
    """Ablating the auxiliary module hardly changes the forget loss: the capability does not sit in it."""
