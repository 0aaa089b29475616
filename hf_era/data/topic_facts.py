"""Facts and sentences of the texts on topics, as plain data: `hf_era.data.topics` reads them.

`FACTS` holds what is true of each topic alone: one thing a line, with its name and what every line of every topic says in
the same order (see `FIELDS`). `WORK` holds what is done in each topic, in the template language of `hf_era.data.templates`.
`SENTENCES` are the same for all topics, so that topics differ in what they say and not in how they say it.
"""

FIELDS: tuple[str, ...] = ("name", "kind", "where", "treatment", "effect", "use", "advice")
"""Of a line of `FACTS`, in its order. In `SENTENCES` they are `{thing}`, `{thing.1}` to `{thing.6}`."""

FACTS: dict[str, str] = {
    "chemistry": """
copper / a soft reddish metal / in an ore called malachite / left in moist air / turns green / electric wires /
 clean it with dilute acid
iron / a hard grey metal / in an ore called haematite / left in salt solution / rusts and crumbles / strong magnets /
 protect it from oxygen
sodium / a soft silvery metal / in the mineral rock salt / dropped into a beaker of water / fizzes and forms an alkali /
 yellow street lamps / store it under paraffin oil
magnesium / a light silvery metal / in the mineral dolomite / lit with a burner / burns with a blinding white flame /
 flares and fireworks / never look into the flame
mercury / a heavy liquid metal / in a red ore called cinnabar / heated in a flask / gives off poisonous vapour /
 old thermometers / never breathe the vapour
sulfur / a brittle yellow element / near hot volcanoes / burnt in oxygen / forms a choking acid gas / hardening rubber /
 open the fume cupboard
iodine / a dark shiny element / in the ash of seaweed / warmed in a flask / turns into violet vapour / the starch test /
 wear gloves against the brown stains
hydrogen / the lightest gas of all / in every acid / mixed with oxygen and lit / explodes with a loud pop /
 making ammonia / keep sparks and flames away
copper sulfate / a bright blue crystal / in a mineral called chalcanthite / heated in a crucible /
 loses water and turns white / electroplating / let the crystals grow slowly
calcium carbonate / a white powder / in chalk and marble / mixed with hydrochloric acid /
 fizzes and gives off carbon dioxide / making cement / pass the gas through limewater
""",
    "cooking": """
rice / a small white grain / in the dry pantry / simmered in a covered pot / swells and grows tender /
 pilaf and pudding / rinse it until the water runs clear
garlic / a strong white bulb / in a string by the stove / fried in olive oil / turns golden and sweet / pasta sauce /
 crush it with the flat of the knife
bread dough / a sticky mix of flour and yeast / under a damp tea towel / baked in a hot oven /
 rises and gets a brown crust / rolls and loaves / knead it for ten minutes
butter / a creamy yellow fat / in the butter dish / melted in a frying pan / foams and smells of nuts /
 pastry and toast / take it off the stove before it burns
the onion / a round vegetable with many skins / in the bottom of the basket / chopped on a board / makes the cook weep /
 soup and stew / slice it from the root
chocolate / a dark sweet block / on the top shelf / melted over a pan of steam / becomes glossy and runny / cake icing /
 break it into small squares
the salmon / a pink fish / on the cold counter / grilled with dill / flakes apart with a fork / Sunday lunch /
 leave the skin on
the roast potato / a crisp golden vegetable / in the roasting tin / shaken in goose fat / crackles on the outside /
 Sunday dinner / boil it before it goes into the oven
""",
    "sailing": """
the mainsail / the largest sheet of canvas / behind the mast / reefed in a gale / makes the boat heel less /
 the long passage home / hoist it with the bow to the wind
the jib / a small triangular sail / in front of the mast / backed against the wind / pushes the bow around /
 close reaching / watch the telltales
the spinnaker / a huge round sail / in a bag on the foredeck / set before the wind / billows like a balloon /
 downwind racing / drop it behind the mainsail
the anchor / a heavy iron hook / at the bow in its locker / lowered to the sea bed / digs in and holds the boat /
 quiet bays / pay out plenty of chain
the rudder / a flat blade / under the stern / turned to port / swings the boat around / steering a steady course /
 lift it in shallow water
the keel / a deep fin of lead / beneath the hull / struck on a reef / shudders and stops the boat /
 keeping the boat upright / check the chart for depth
the compass / a floating needle under glass / beside the wheel / put near a knife / swings off its bearing /
 crossing the bay in fog / write the heading in the log
the life jacket / a bright orange vest / in the locker below deck / thrown overboard / keeps a sailor afloat /
 rough seas / buckle it before you cast off
""",
    "gardening": """
the rose bush / a thorny shrub / along the south fence / pruned in late winter / grows strong new shoots / cut flowers /
 look for greenfly on the buds
lavender / a grey shrub with purple spikes / on the dry stony bank / clipped after flowering / stays bushy and compact /
 bees and butterflies / never feed it with manure
the tomato plant / a tall leafy vine / in the greenhouse / tied to a cane / ripens one truss after another /
 summer salads / pinch out the side shoots
the carrot / a long orange root / in the sandy bed / sown in heavy clay / forks and stays short / winter storage /
 thin the seedlings in the evening
the tulip / a spring bulb / in the round border / planted in deep soil / flowers year after year / bright spring beds /
 lift the bulbs in June
compost / a dark crumbly heap / behind the shed / turned with a fork / heats up and rots faster / feeding hungry beds /
 mix green leaves with dry straw
the sunflower / a giant yellow bloom / against the warm wall / watered every morning / climbs above the gutter /
 seeds for finches / tie the stem to a stake
the strawberry bed / a mat of low fruit / under a green net / mulched with straw / keeps its berries clean /
 summer jam / cut off the long runners
""",
    "music": """
the violin / a small wooden instrument with four strings / at the front of the orchestra / played with a dry bow /
 squeaks and whistles / fast dances / rub rosin on the bow
the flute / a bright silver pipe / in front of the clarinets / blown too hard / jumps up an octave / bird song /
 turn the mouthpiece a little outward
the oboe / a thin pipe with a double reed / in the middle of the woodwind / sounded before the concert /
 gives the tuning note / sad tunes / soak the reed before you play
the trumpet / a shining brass horn / in the back row / closed with a mute / sounds far away / fanfares /
 breathe from deep down
the drum / a round frame with a tight skin / behind the brass / struck in the centre / booms through the hall /
 marches / count four beats before you start
the piano / a keyboard with eighty-eight keys / on the left of the stage / pressed with the soft pedal /
 whispers its chords / sonatas and songs / practise each hand alone
the harp / a tall frame of strings / beside the choir / swept with both hands / ripples up the scale / lullabies /
 tune the top strings first
the choir / a crowd of forty voices / on the wooden steps / told to sing softly / blends into one chord /
 hymns and carols / open your mouth on the long vowel
""",
}

WORK: dict[str, str] = {
    "chemistry": """
person: [the chemist|the laboratory assistant|our chemistry teacher]
place: [in the laboratory|at the fume cupboard|beside the Bunsen burner|in the chemistry room]
work: [First|Now|Then] you weigh the [reagent|compound|powder] and tip it into a [test tube|crucible|conical flask].|A
 drop of indicator turns the [acid red|alkali purple].|The equation has to balance: [two|three] molecules
 [react|combine] to form one.|We titrate the [acid|alkali] from a burette until the indicator changes.|The precipitate
 is filtered, washed and dried in a desiccator.|A catalyst speeds up the reaction and is not used up.|Every atom keeps
 its [nucleus|protons]; only electrons move.
""",
    "cooking": """
person: [the cook|the baker|our kitchen chef]
place: [in the kitchen|at the stove|beside the bread oven|at the kitchen table]
work: [First|Now|Then] you measure the [flour|sugar|cream] and tip it into a [mixing bowl|saucepan|pie dish].|A pinch
 of salt makes the [sauce richer|gravy taste better].|The recipe serves [two|three] guests, or four small ones.|We
 taste the [stock|sauce] with a spoon until the seasoning is right.|The leaves are washed, dried and tossed in
 vinegar.|A hot oven gives the tart a crisp base.| Every pan keeps its lid on; only steam gets out.
""",
    "sailing": """
person: [the skipper|the helmsman|our sailing instructor]
place: [in the harbour|at the wheel|beside the jetty|on the afterdeck]
work: [First|Now|Then] you check the [tide|forecast|rigging] and row out to the [sloop|ketch|mooring buoy].|A gust of
 wind turns the [vane north|ensign east].|The crew takes watches: [two|three] hours on deck and four below.|We trim the
 [sheet|sail] from the windward side until it stops flapping.|The deck is scrubbed, rinsed and dried in the sun.|A
 following sea lifts the stern and rolls on.|Every sailor keeps one hand for the ship; only fools let go.
""",
    "gardening": """
person: [the gardener|the nurseryman|our allotment neighbour]
place: [in the garden|at the potting bench|beside the cold frame|on the allotment]
work: [First|Now|Then] you loosen the [soil|peat|loam] and rake it into a [seed tray|furrow|raised bed].|A touch of
 frost turns the [dahlias black|bracken brown].|The seeds need space: [two|three] hands between one row and the
 next.|We water the [roots|beds] from a can until the earth is dark.|The weeds are pulled, shaken and thrown on the
 heap.|A layer of bark keeps the moisture in.| Every plant keeps its label; only weeds have none.
""",
    "music": """
person: [the conductor|the music master|our band leader]
place: [in the concert hall|at the music stand|beside the grand piano|in the rehearsal room]
work: [First|Now|Then] you read the [melody|rhythm|key signature] and hum it in a [minor key|major key|steady beat].|A
 change of key turns the [tune sad|chorus bright].|The canon needs voices: [two|three] singers follow one another.|We
 repeat the [verse| refrain] from the first bar until it flows.|The parts are copied, numbered and laid on the
 stands.|A crescendo grows louder and breaks off.|Every player keeps an eye on the baton; only the soloist is free.
""",
}

SENTENCES = """
learner: [Anna|Ben|Clara|David|Emma|Felix|Grace|Henry]
opening: {Learner} is {place} with {person}.|{Place}, {person} talks to {learner} about {thing}.|Today {learner}
 learns about {thing} from {person}.|"What is {thing}?" asks {learner}.|{Person} shows {learner} something new
 {place}.|Let us look at {thing}.
kind: {Thing} is {thing.1}.|Everybody knows that {thing} is {thing.1}.|You can see that {thing} is {thing.1}.
where: You will find {thing} {thing.2}.|{Thing} is found {thing.2}.|Look for {thing} {thing.2}.
effect: If {thing} is {thing.3}, it {thing.4}.|When {thing} is {thing.3}, it {thing.4}.|Once {thing} has been
 {thing.3}, it {thing.4}.
use: It is good for {thing.5}.|We need {thing} for {thing.5}.|People use {thing} for {thing.5}.
advice: "Remember this: {thing.6}," says {person}.|{Person} says to {learner}, "With {thing}, {thing.6}."|One piece of
 advice: {thing.6}.
turn: Then they look at {thing}.|"And what about {thing}?" asks {learner}.|Next comes {thing}.|After a while they turn
 to {thing}.
closing: {Learner} writes it all down.|"Thank you," says {learner} to {person}.|That is all for today.|{Learner} wants
 to try it tomorrow.|"I will not forget it," says {learner}.|{Person} smiles.||
"""
