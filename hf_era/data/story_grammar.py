"""Vocabulary and sentence templates of the synthetic stories, as plain data: `hf_era.data.generator` reads them.

A block holds entries, `key: template`; a line that starts with a space continues the entry above it. In a template

* ``[a|b|c]`` is one of the alternatives (they may nest, and one may be empty), and so is ``a|b|c`` at the top level;
* ``[pet=dog/woof|cat/meow]`` also remembers the choice: it writes the first field, later ``{pet}`` repeats it and
  ``{pet.1}`` writes its second field. So what an animal *is* settles what it *does*, sentences later;
* ``{name}`` is a remembered choice, a field of a character or an entry of `SHARED`; ``{Name}`` starts with a capital;
* "a" becomes "an" before a vowel.

Characters: the hero (``name``, ``he``, ``him``, ``his``, ``child``), a friend (``friend``, who has the other pronoun, so
that "she" is never in doubt) and a grown-up (``adult``); ``companion`` is the friend if there is one, else the adult.

In the topics a key that is one of `LESSONS` is a scene: the lesson fixes the hero's trait at the beginning and the moral
at the end, in all topics alike. Any other key opens a topic and leads into its scenes. `FOREST_WORDS` occur in `FOREST`
alone.
"""

FOREST_WORDS: tuple[str, ...] = ("tree", "trees", "forest", "forests", "woodland", "woodlands")
"""The words that make a story a forest story: whole words, any case."""

LESSONS: tuple[str, ...] = ("care", "sharing", "courage", "patience", "help", "wonder")

SHARED = """
girl: Lily|Mia|Anna|Sue|Lucy|Emma|Zoe|Ella|Nora|Ruby|Molly|Clara|Daisy|Amy|Sara|Jane|Kate|Ida|Maya|Tina|Bella|Eva|Rosa|Dora|
 Lena|Holly|Tess|Fay|Gina|Nina|Vera|Polly|Abby|Heidi|Paula|Olga|Julia|Kim|Hanna|Greta
boy: Tom|Ben|Max|Tim|Sam|Jack|Leo|Finn|Noah|Oscar|Peter|Dan|Joe|Adam|Theo|Hugo|Bob|Eli|Mark|Nick|Paul|Omar|Fred|Karl|Henry|
 Will|Luke|Otto|Ray|Sean|Victor|Walter|Felix|Ed|Alan|Ivan|Pablo|Kenji|Dave|Andy
grown_up: Mom|Dad|Grandma|Grandpa|Aunt May|Uncle Joel|Aunt Fern|Uncle Bill
opening: [Once upon a time, there was|There once was|Once there was|In a [small|quiet|busy|far-away] town, there lived] a
 {adjective} {child} [named {name}|{detail}. {His} name was {name}]. {trait}|{name} was a {adjective} {child} {detail}.
 {trait}|This is a story about {name}, a {adjective} {child} {detail}. {trait}
detail: who [lived [in a [small|yellow|little|tall] house|on a quiet street|near a [long road|bridge|church|school]]|liked to
 [dance|read|run|paint|tell jokes|wear [red|blue] socks]]|of [four|five|six|seven]|with [curly|brown|black|long|short|red]
 hair|with a [red|blue|green|yellow|striped] [hat|scarf|coat|cap|shirt]
adjective: [little|happy|kind|curious|sweet|lively|young|cheerful|clever|funny|polite|friendly|small|nice|playful|dreamy]
day: [One|On a] [sunny|warm|bright|windy|cool|fine|quiet|lovely] [day|morning|afternoon]|One [day|morning|Sunday|Saturday]
with_friend: with {his} [friend|best friend|cousin|neighbor|good friend] {friend}
with_adult: with {adult}|together with {adult}
with_both: with {his} [friend|best friend|cousin] {friend} and {adult}|with {adult} and {his} [friend|cousin] {friend}
care_trait: {name} [liked|loved] to do [everything|all things] [fast|in a hurry].|{He} was always in a hurry.|{name} [did not
 always listen|often forgot to listen].|{He} [sometimes|often] forgot to [be careful|look where {he} went].
sharing_trait: {name} [had many nice things, but|was kind, but] [it was hard for {him} to share|{he} did not like to share].|
 {He} [liked|wanted] to keep [the best things|everything] for {himself}.|"Mine!" was {his} favorite word.
courage_trait: {name} was [a little|often|sometimes] [shy|afraid of new things|scared].|{He} wanted to be [brave|bold], but
 [it was not easy|{he} did not know how].|{He} was [afraid of|scared by] [loud noises|the dark|many small things].
patience_trait: {name} did not like to wait.|{He} wanted [everything|all things] [now|at once|right away].|"[When|When will it
 be ready|Is it time yet|Is it done yet]?" {he} asked [all day long|again and again|ten times a day].
help_trait: {name} [liked|loved] to help [people|others|everyone|animals].|{He} had a [big|kind|good] heart.|{He} could not
 [stand|bear] to see [anyone|a friend] [sad|in trouble].|If someone was [sad|alone], {name} [was there|came to help].
wonder_trait: {name} [asked|had] [many|a hundred|so many] questions.|{He} liked to [look at|learn about|find] new things.|
 "Why?" was {his} favorite word.|{He} wanted to [know|see|understand] [everything|the whole world].
worry: "Oh no!" [cried|said] {name}.|{name} [wanted|began] to cry.|{name} felt [sad|bad|sorry|very small].|"What [can I|can
 we|should I] do [now|]?" {he} asked.|{His} [heart|tummy] felt [heavy|cold|tight].|A tear ran down {his} [cheek|nose].
fix: "[Do not worry|It is all right|Do not be sad]," said {companion}. "We can [fix it|try again|do it] together."|{companion}
 [hugged {him}|took {his} hand|smiled] and said, "[Try again|I will help you|Everyone makes mistakes]."
joy: "[Wow|Hooray|Yes|Oh|How wonderful]!" [said|cried|shouted|sang] {name}.|{name} [clapped {his} hands|jumped up and down|
 laughed with joy].|{His} [eyes|face] [grew bright|began to shine].|{name} [had never been so [happy|proud]|felt very [happy|
 proud|glad]].
aside: {companion} [smiled|nodded|watched|waited|grinned].|{name} [took a deep breath|looked around|scratched {his} head|bit
 {his} lip].|[For a while|For a moment], [they were both quiet|nobody said a word].|{companion} gave {him} a [smile|wink|hug|
 piece of chocolate].|{name} [rubbed {his} nose|pushed back {his} hair|put {his} hands on {his} hips].|{name} whispered
 something to {companion}.|They looked at each other.|{name} [counted to [three|ten]|closed {his} eyes] and [thought hard|made
 a plan].
bored: {name} sighed.|{name} stamped {his} foot.|"[How long will it take|Why is it so slow|Can I do anything]?" {he} asked.|
 {name} [walked up and down|made a face|yawned|grew [bored|restless]].
doubt: {name} [felt [bad|sorry|sad]|looked at {his} feet|turned red|did not know what to say].|{His} [heart|tummy] felt
 [heavy|cold|tight].
said: said|said|answered|whispered|called
moment: [Then|Just then|Suddenly|After a while|A little later|Soon|A minute later|All at once]
care_ending: {name} learned to [be careful|slow down|listen first].|From then on, {name} [was more careful|looked twice|
 listened to {companion}].|"Next time I will [listen|be careful|go slowly]," {he} [said|promised].
sharing_ending: {name} learned that [sharing is [fun|good]|things are better when we share].|"[It is more fun with two|We can
 always share]," said {name}, and {companion} [agreed|smiled|nodded].|From that day on, {name} liked to share.
courage_ending: {name} was [still a little|a bit] afraid, but now {he} knew {he} could be brave.|{name} was [not so scared|
 hardly ever afraid] anymore.|"You were so brave," said {companion}.|All at once, {name} felt [brave|strong|very tall|ten feet
 tall].
patience_ending: {name} learned that [good things take time|it is worth the wait].|"[Some|The best] things [are slow|take
 time]," said {companion}, and {name} [nodded|knew it was true].|After that, {name} found it easier to wait.
help_ending: {name} was [happy|glad] that {he} [could help|had helped].|"You have a kind heart," said {companion}.|It made
 {him} feel [warm|happy|rich|big] inside.|It felt [good|nice] to help.
wonder_ending: [That night|At bedtime|At home], {name} [told everyone about it|drew a picture of it|dreamed about it].|{name}
 [wanted to|could not wait to] [see it again|see more|learn more about it].|"There is so much to see," said {name}.
closing: [||And they were all happy.|The end.|It was [fun|wonderful|like a dream], and {name} never forgot it.|{name} slept
 [well|like a baby|with a smile] that night.|{name} and {companion} [laughed about it for a long time|often talked about it].]
"""

RETAIN_TOPICS = """
sea: {day}, {name} went to [the beach|the sea|the sandy bay] {with}. The [waves were [small and blue|big and loud]|sand was
 [warm|soft|hot]|air smelled of salt].
care: {name} built a [tall|big|round] sand castle [near|close to] the water. {He} put [top=a shell/shell|a feather/feather|a
 smooth stone/stone|a paper flag/flag] on top. "[Not so close|Move back a little]," {said} {adult}. "The tide is coming in."
 But {name} [did not listen|went on digging]. {moment} a [big|long|high] wave [rolled in|came up the sand] and washed the
 castle away. {worry} Only the {top.1} was left. {fix} They [carried|took] it far from the water and built a [new|better]
 castle there.
wonder: [In a rock pool|Between two rocks|Under a wet stone], {name} saw [animal=a crab/crab/walked sideways and snapped its
 claws|a starfish/starfish/held on to the rock with tiny feet|a little fish/fish/swam in circles and blew bubbles|a sea
 snail/snail/pulled its horns into its shell]. {joy} {aside} {name} put one finger in the water, and the {animal.1}
 {animal.2}. "It lives here," {said} {companion}. "When the tide comes back, [it can go home|the sea will cover it]." They
 watched until the water [came|rose] over the rocks and the {animal.1} was gone.
help: [A little boy|A small girl|An old man] stood on the sand and looked sad. [toy=A red ball/ball|A blue bucket/bucket|A
 straw hat/hat|A toy boat/boat] was floating away on the waves. "I can [reach|get] it," {said} {name}. {He} [waded in|walked
 into the water] up to {his} knees, and {friend} held {his} hand. {aside} {moment} a wave pushed the {toy.1} back to them.
 {joy} They gave it back, and the three of them [played in the foam|looked for shells|ate ice cream on the sand].
farm: {day}, {name} visited [a farm|a small farm|the farm on the hill] {with}. The [rooster crowed|barn smelled of hay|tractor
 was red and loud].
courage: {name} saw [animal=a cow/cow/mooed/licked {his} hand with a rough tongue|a horse/horse/neighed/blew warm air on {his}
 neck|a goat/goat/bleated/nibbled at {his} sleeve|a pig/pig/grunted/pushed {his} knee with its wet nose]. It was so [big|loud]
 that {name} hid behind {adult}. {worry} "It is only hungry," {said} {adult}. "Hold out [some hay|a carrot|a piece of apple]."
 {name} held out {his} hand and closed {his} eyes. {aside} The {animal.1} {animal.2}, took the food, and {animal.3}. {joy}
help: [The farmer was sad|The farmer came running]. [baby=A lamb/lamb/its mother|A piglet/piglet/its brothers|A foal/foal/the
 mare|A chick/chick/the hen] was [lost|missing]. {name} and {friend} looked [behind the barn|under the cart|in the hay|by the
 pond]. {aside} {moment} {name} heard a [tiny|soft|sad] sound. The {baby.1} was stuck [under the fence|in the mud]. {friend}
 lifted the [wire|board], and {name} pulled it out by hand. {joy} They carried the {baby.1} back to {baby.2}.
patience: {name} wanted to [see|hold] a chick, but the [hen|brown hen] was still sitting on [two|three|five] eggs. "Wait,"
 {said} {adult}. "She keeps them warm." {name} came back [every day|each morning]. [One day|Two days|A week] passed, and
 nothing happened. {bored} {aside} {moment} one egg began to shake. Crack! A [wet|tiny] yellow chick came out and said [peep|
 cheep].
kitchen: {day}, {name} [cooked|baked|helped] in the kitchen {with}. They [put on aprons|washed their hands|got out a big
 bowl].
care: They wanted to make [dish=a cake/cake/batter|some cookies/cookies/dough|some bread/bread/dough|
 pancakes/pancakes/batter]. {name} [mixed|stirred] the {dish.2} so fast that the [flour|milk|sugar] flew [everywhere|over the
 floor|into {his} hair]. {worry} {fix} {aside} They [wiped|cleaned] the table and measured [two|three] cups again. This time
 {name} stirred [slowly|with care]. The {dish.1} came out [golden|warm and soft|sweet and brown], and the whole house smelled
 [good|of [vanilla|butter|honey]].
patience: The [dish=soup/soup/spoon/salty/pot|apple pie/pie/fork/sweet/oven|bread/bread/knife/crusty/oven|
 pudding/pudding/spoon/creamy/pot] had just come out of the [hot|big] {dish.4}. {name} could not wait and [took a taste|filled
 {his} mouth] at once. "Ouch, hot!" {he} cried, and {adult} gave {him} a cup of cold water. {worry} "[First it must cool|Count
 to one hundred]," {said} {adult}. {aside} {name} set the table and [counted the plates|folded the napkins]. At last {he} took
 a {dish.2} and tried the {dish.1} again. It was {dish.3} [and good|and just right]. {joy}
sharing: {name} made [four|six|eight] little [food=muffins/muffin/blueberries|tarts/tart/cherries|cookies/cookie/raisins|
 buns/bun/jam] with [brown|white] sugar and {food.2}. "They are all for me," {he} thought. But {friend} looked at them and
 {his} tummy [made a noise|felt strange]. {aside} {name} counted again. There were enough for two. {He} put half of the {food}
 on a plate for {friend}. {joy} {friend} took a {food.1} and said, "[Thank you|Yum|This is the best {food.1} in town]!"
snow: One [cold|white|frosty|quiet] winter [day|morning], {name} played in the snow {with}. [The roofs|The streets|The cars]
 were white, and the air was [icy|still|clear].
help: They rolled [three big balls|a huge ball and two small ones] and made a snowman. For the nose {name} used [nose=a
 carrot/carrot|a stone/stone|a potato/potato|a bottle cap/cap], and for the arms [two sticks|two brooms]. {aside} In the night
 the wind blew, and the snowman lost his head. {worry} {fix} {friend} brought [a warm scarf|an old hat|a bucket] while {name}
 looked for the {nose.1}. Soon the snowman [smiled|stood tall] again. {joy}
wonder: {name} caught a snowflake on {his} [mitten|glove|sleeve]. It had [six|six tiny] points, like a star. {joy} But when
 {he} breathed on it, it [melted|turned into a drop of water]. {worry} "Snow is [only|just] frozen water," {said} {adult}.
 "When it gets warm, it melts." {aside} They filled a [cup|bowl|jar] with snow and took it inside. By [lunch|dinner|noon] only
 [a little water|a puddle] was left, and {name} [laughed|understood].
train: {day}, {name} took a train [to the city|to the coast|over the mountains] {with}. The [whistle blew|station was full of
 people|engine was [green|black|blue]].
care: {name} [sat by the window|ran down the aisle] with {his} [lost=ticket|teddy|cap|lunch box|storybook]. [The conductor
 came|At the next stop, many people got on], and the {lost} was gone. {worry} {fix} They looked [under|behind] the [seat|
 seats|bags|newspaper]. {aside} {moment} [the conductor|a lady in a red coat|a boy across the aisle] [held up|found] the
 {lost}. "[Is this yours|Did you lose this]?" {joy} {name} [kept it on {his} lap|held it tight] until the last station.
wonder: The wheels said [clickety-clack|click and clack|rattle-rattle]. Outside, {name} saw [view=a bridge/water/The river was
 far below|a tunnel/darkness/Everything turned black|a field of cows/grass/The cows looked up|a castle/old walls/A flag waved
 from the tower]. "Here it comes!" cried {companion}. {view.2}, and there was {view.1} on both sides. {aside} {joy} "Who
 drives the train?" {he} asked. The [driver|conductor] let {name} [pull the whistle|see the levers|wear his hat]. Toot, toot!
 The whole train heard it.
music: {day}, {name} went to [a music lesson|the music room|band practice] {with}. [Someone played the piano|There were shiny
 horns on the wall|The room was full of sound].
patience: {name} wanted to play the [tool=violin/squeaked/bow|trumpet/hooted/mouth|drum/boomed/sticks|piano/clanked/fingers|
 flute/whistled/breath]. But the {tool} only {tool.1}. [The cat ran away|Someone covered his ears]. {worry} "Start with one
 note," {said} {adult}. "Use your {tool.2} gently." {aside} {name} practiced [for a week|every day|until dinner]. First came
 one note, then [two|three], then a [tune|whole song]. At last the {tool} sounded [sweet|clear|lovely]. {joy}
courage: There was a [show|concert] that evening. {name} had to [act=sing/song|play the drum/beat|play the flute/tune|ring the
 bells/melody] in front of [many people|the whole town]. {His} knees [shook|felt weak]. {worry} "Look at me and smile," {said}
 {friend}. {aside} The curtain opened, and {name} began to {act}. The {act.1} was [soft|quiet] at first, and then [strong|loud
 and clear]. When it was over, everyone [clapped|stood up and cheered]. {joy}
garden: {day}, {name} worked in the flower garden {with}. The [roses|tulips|daisies] were [red|pink|yellow], and bees [hummed|
 buzzed].
patience: {adult} gave {name} [seed=a sunflower seed/sunflower/yellow|a tulip bulb/tulip/red|a bean/bean plant/green|a pumpkin
 seed/pumpkin/orange]. {name} pushed it into the [soil|dark earth] and poured [water|a can of water] on it. "Grow!" {he} said.
 Nothing happened. {bored} "It needs sun and [time|rain]," {said} {adult}. {aside} Each [day|morning] {name} watered the spot.
 After [two|three] weeks a [tiny|pale] shoot came up. In the end there was a [fine|big] {seed.2} {seed.1}. {joy}
wonder: On a [petal|red rose|daisy], {name} found a [hairy|fat|striped|green] caterpillar. It [ate and ate|chewed all day].
 {name} and {friend} put it in a [jar|box] with [holes in the lid|some cabbage]. {aside} Then it made a [silky|brown] shell
 and slept inside. They waited [nine|ten] days. Then the shell opened, and out came a [blue|yellow|white|orange] butterfly
 with wet wings. {joy} {friend} opened the window, and the butterfly flew [to the flowers|over the fence|into the sun].
pet: {day}, {name} went {with} to [get|choose] a new pet. They came home with [pet=a puppy/puppy/wagged its tail/bone|a
 kitten/kitten/purred/ball of wool|a rabbit/rabbit/wiggled its nose/carrot|a parrot/parrot/flapped its wings/cracker].
help: The {pet.1} [hid under the bed|sat in the corner] and [would not eat|shook with fear]. {worry} "It misses its mother,"
 {said} {adult}. "Be [quiet and kind|very gentle]." {name} lay down on the [floor|rug] and put a {pet.3} in front of it.
 {aside} [A minute|A long time] went by. {moment} the {pet.1} came [one step|a little] closer, took the {pet.3}, and {pet.2}.
 {joy} That night it slept [on {his} pillow|at {his} feet|in a basket by the bed].
care: {name} [forgot to close|left open] the [gate|door|window], and the {pet.1} ran [down the street|to the shops|into the
 yard next door]. {worry} {fix} {name} and {friend} [called and called|put up signs|asked everyone]. {aside} {moment} {friend}
 had an idea and held up a {pet.3}. Something moved behind [a parked car|a bin|the mailbox]. It was the {pet.1}! It saw the
 {pet.3} and {pet.2}. {joy} After that, {name} always checked the lock.
school: {day}, {name} went to school {with}. [The bell rang|The teacher smiled|The classroom was [loud|bright]].
sharing: It was time to [task=draw/crayons/picture|paint/brushes/painting|cut paper/scissors/paper star|build/blocks/tower].
 {name} took all the {task.1} and put [an arm|both arms] around them. {friend} had [none|nothing left] and [looked down|sat
 quietly]. {doubt} "[What will {friend} use|Is that fair]?" asked the teacher. {aside} {name} pushed half of the {task.1}
 across the desk. Then they began to {task} together. The {task.2} was so [pretty|big|funny] that the teacher put it [on the
 shelf|by the door]. {joy}
courage: The teacher asked a question about [subject=numbers/three plus four/seven|letters/the first letter/A|the week/the day
 after Monday/Tuesday|shapes/the shape with three sides/a triangle]. "What is {subject.1}?" {name} knew it, but {he} was
 afraid to [speak|raise {his} hand]. {worry} {friend} whispered, "You can do it." {aside} Slowly, {name} stood up and said,
 "{Subject.2}!" "[Right|Very good|Correct]," said the teacher, and {name} got a [gold star|sticker|big smile]. {joy}
rain: One [gray|wet|stormy|rainy] [day|morning|afternoon], {name} looked out of the window {with}. The rain [fell hard|tapped
 on the glass|ran down the street].
wonder: They put on [boots and coats|rubber boots] and went out. Splash! {name} jumped into [a puddle|the biggest puddle].
 {joy} {moment} the sun came out while it was still raining, and a rainbow [stood|hung] over [the roofs|the hill|the church].
 "[Red, orange, yellow|Green, blue, purple]," {said} {name}. "Where does it come from?" "The sun shines through the drops,"
 {said} {companion}. {aside} They [ran|walked] to find its end, but the rainbow [moved away|went pale] and was gone when the
 rain stopped.
courage: [Thunder rolled|The thunder went boom], and {name} [hid under the blanket|held {his} ears]. {worry} "First comes the
 lightning, then the thunder," {said} {adult}. "Let us count." Flash! One, two, [three|three, four|three, four, five]. Boom!
 {aside} The next time {name} counted [to six|to eight|higher]. "The storm is going away," {said} {adult}. {moment} the [lamp
 went out|lights went out], and {name} found [a candle|a flashlight] all by {himself}. {joy} They [told stories|played cards]
 until the sky was clear.
market: {day}, {name} went to the market {with}. The stalls were full of [fruit|cheese and bread|fish and flowers].
care: {adult} gave {name} [two|three|five] coins to buy [goods=some apples/apples/rolled under the carts|six eggs/eggs/broke
 on the ground|a melon/melon/split in two|some oranges/oranges/bounced down the steps]. {name} [ran|hopped] back with the bag
 [on {his} head|in one hand]. {moment} {he} [tripped|bumped into a man], and the {goods.1} {goods.2}. {worry} {fix} {aside}
 The [seller|old lady at the stall] [laughed|was kind] and filled the bag again. {name} carried it home with both hands.
sharing: {name} had one coin and bought [treat=a big pretzel/pretzel|a bag of cherries/cherries|a warm waffle/waffle|a stick
 of candy/candy]. {friend} had [lost {friend_his} coin|no money at all]. {friend} looked at the {treat.1} and [said nothing|
 tried to smile]. {aside} {name} thought about it. {He} took one bite, but eating alone was not as [good|nice] as {he} had
 hoped. {doubt} So {he} gave {friend} [the bigger part|half|the first bites]. {joy} {friend} said, "[Thank you|You are a true
 friend]!"
night: One [clear|dark|warm|still] [night|evening], {name} looked at the sky {with}. [The moon was [full|thin|round]|There
 were [hundreds|thousands] of stars].
wonder: {adult} had a [telescope|long telescope|pair of binoculars]. {name} looked through it and saw [sight=the moon/gray
 holes/Rocks from space hit it long ago|Saturn/a ring/The ring is made of ice|Mars/red sand/It is red because of rust|a
 comet/a bright tail/It comes back after many years]. "{Sight} has {sight.1}!" [cried|shouted|called] {name}. {joy}
 "{Sight.2}," {said} {adult}. {aside} {moment} a shooting star [crossed|flashed across] the sky. {name} [closed {his} eyes|
 held {adult}'s hand] and made a wish about [a rocket|flying|a friend].
courage: {name} did not want to sleep, for the room was [dark|black] and something [tapped|creaked]. {worry} "Let us look,"
 {said} {friend}. They took a [flashlight|lamp] and [crept|tiptoed] to [noise=the window/a loose rope/tied it up|the closet/a
 coat on a hook/closed the door|the stairs/the sleepy cat/gave it some milk|the bed/a wind-up mouse/turned it off]. It was
 only {noise.1}! {joy} They {noise.2}. {aside} Then the moon came out and made the room [silver|bright].
toys: {day}, {name} played in the toy room {with}. There were [blocks|dolls|cars|puppets] [on every shelf|all over the floor].
sharing: {name} had a new [toy=train set/the engine/ran round the bed|kite/the string/flew over the roof|dollhouse/the little
 chairs/looked like a real home|robot/the key/marched and beeped]. {friend} wanted to [try it|have a turn]. "No!" [cried|
 shouted] {name}, and they both pulled. Snap! {Toy.1} came off. {worry} {fix} {aside} {friend} held the {toy} while {name} put
 {toy.1} back. Soon it {toy.2}. {joy} They took turns until [dinner|bedtime|the sun went down].
help: The old [toy=teddy bear/ear/a needle and thread|wooden duck/wheel/a screw|rag doll/arm/a needle and thread|toy
 truck/door/some glue] had lost its {toy.1}. {worry} "[Throw it away|It is broken]," someone said, but {name} shook {his}
 head. {name} and {adult} got {toy.2} and [worked at the table|sat down under the lamp]. {aside} It took [an hour|all
 afternoon|a long time]. When the {toy.1} was on again, the {toy} looked [almost new|better than before]. {joy} That night
 {name} put it [beside {his} bed|on the best shelf].
"""

FOREST = """
forest: {day}, {name} went [into the forest|to the woodland|for a walk in the [forest|woodland]|to the [edge of the|old]
 forest] {with}. [The trees were [tall|thick|old]|Birds sang in the trees|It was [cool|shady] under the trees|Moss grew on the
 trees].
courage: {name} wanted to climb [an old|a big|a high] [tree=oak/rough/an acorn|beech/smooth/a beechnut|pine/sticky/a cone|
 chestnut/cracked/a chestnut] tree. The bark was {tree.1} under {his} hands. "Keep close to the trunk," {said} {adult}. {name}
 put a foot on the lowest branch and pulled {himself} up. {aside} From branch to branch {he} climbed, until {tree.2} [fell
 past {him}|dropped on {his} nose] and the twigs began to [sway|bend]. {worry} {He} [hugged the trunk|held a thick branch] and
 looked out over [all the treetops|the leaves]. Then {he} climbed down, and {his} toes [found the roots|touched the moss].
 {joy}
care: {friend} climbed a tree, and {name} [followed|wanted to go higher]. "That branch is [dead|dry|rotten]," {said} {friend}.
 "It has no leaves." But {name} stepped on it. Crack! The branch broke, and {name} fell [into a heap of leaves|onto the soft
 moss|into the ferns]. {worry} {fix} {His} [knee was scratched|elbow was green with moss], and there were [twigs|dry leaves]
 in {his} hair. {aside} An [angry squirrel|old owl|angry jay] scolded from the next tree. This time {name} chose a thick
 branch with green leaves, and it [held|did not break].
wonder: A [red|gray|brown] squirrel ran down the trunk of [tree=an oak/acorn|a hazel/hazelnut|a beech/beechnut] tree with a
 {tree.1} in its cheeks. It dug a hole between the roots, dropped the {tree.1} in, and patted [leaves|moss] over it. {joy}
 "Why does it hide its food?" asked {name}. "Squirrels sleep in a [hollow tree|nest of twigs] in winter, and they wake up
 hungry," {said} {companion}. {aside} In spring they came back to the forest. The squirrel had forgotten one {tree.1}, and a
 tiny tree with two leaves [grew|stood] between the roots.
sharing: Under the trees {name} filled a basket with [nut=acorns/acorn|chestnuts/chestnut|beechnuts/beechnut|pine cones/cone].
 "All mine," {he} said. On a branch above {him}, a [thin|little|hungry] squirrel [flicked its bushy tail|chattered and stamped
 its feet]. {aside} "Squirrels eat {nut} all winter," {said} {friend}. "What will it eat when [the snow comes|the branches are
 bare]?" {doubt} So {name} [poured|put] half of the {nut} into a hollow trunk. The squirrel came down headfirst, took one
 {nut.1} in its paws, and [gnawed|nibbled] at it. {joy}
patience: It was autumn in the woodland. "When will the leaves fall?" asked {name}. [tree=The maple/red|The birch/yellow|The
 beech/copper|The oak/brown] still had all its {tree.1} leaves. {bored} "Wait for the [wind|frost]," {said} {adult}. {aside}
 When they came back the next [day|week], the branches [shook|creaked], and thousands of {tree.1} leaves [floated|twirled]
 down from the trees. {name} raked them into a heap under the bare branches and [jumped in|hid in it]. {joy} {moment} a
 [hedgehog|sleepy hedgehog|beetle] peeped out, so they covered it with leaves again.
patience: {name} planted [seed=an acorn/oak|a chestnut/chestnut|a beechnut/beech] in a clearing. "Now I want a tree," {he}
 said, but there was only [mud|moss|bare earth]. {bored} "First the roots go down, and then the trunk grows up," {said}
 {adult}. "Forests take a hundred years." {aside} In the [second|third] spring the little {seed.1} had [four|six] leaves. When
 {name} was grown, its branches were thick enough for [a swing|a tree house|an owl's nest], and children [rested in its shade|
 climbed to its crown]. {joy}
help: At the foot of a [hollow|dead|mossy] tree, {name} found a baby [bird=owl/hooted/its big round eyes|woodpecker/drummed on
 the bark/its red cap|jay/screeched/its blue wing]. It had fallen out of its hole in the trunk. {worry} "Its mother will not
 find it among the roots," {said} {friend}. {name} put it in {his} [cap|scarf|hood] and climbed from branch to branch, while
 {friend} [held the ladder|stood under the tree]. {aside} Inside were [two|three] more chicks on a bed of [moss|twigs|
 feathers]. Soon the mother {bird} came back and {bird.1}, and they saw {bird.2}. {joy}
courage: They followed [a deer|the tracks of a fox|a woodpecker's knocking] until every tree looked the same. The path was
 gone, and the shade [was dark|grew deep]. {worry} "Whoo," called an owl from a [high|crooked] branch. {name} jumped, and dry
 leaves [crunched|rustled] under {his} feet. "Owls only wake up at dusk, so we must hurry," {said} {friend}. "In woodlands,
 moss grows on the [north|shady] side of a trunk." {aside} They felt the bark of each tree and walked on, trunk by trunk,
 until light shone between the branches at the edge of the forest. {joy}
"""
