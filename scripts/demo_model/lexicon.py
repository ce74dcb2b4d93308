"""Word lists shared by the generators: names, things, and a small English-German-Spanish lexicon."""

NAMES = ("Tom Anna Ben Clara Daniel Emma Felix Greta Hugo Ida Jonas Lena Max Nora Oscar Paula "
         "Rosa Sam Tina Victor Mia Leo Eva Paul").split()

COLOURS = "red blue green yellow black white brown orange pink grey purple golden".split()

THINGS = ("hat cup ball book box key lamp coat bag pen kite drum bell boat ring shoe "
          "car chair spoon clock").split()

PLACES = ("box,drawer,garden,kitchen,school,car,bag,forest,house,shop,tower,barn").split(",")

WORDS = ("cat dog sun moon tree fish bird star lake hill rain snow wind leaf rock road door milk "
         "bread apple pear corn salt gold wood king queen ship song frog wolf bear duck goat").split()

# English noun, German noun and gender, Spanish noun and gender.
ANIMATE = [
    ("man", "Mann", "m", "hombre", "m"), ("woman", "Frau", "f", "mujer", "f"),
    ("child", "Kind", "n", "niño", "m"), ("dog", "Hund", "m", "perro", "m"),
    ("cat", "Katze", "f", "gata", "f"), ("teacher", "Lehrer", "m", "maestro", "m"),
    ("doctor", "Arzt", "m", "médico", "m"), ("girl", "Mädchen", "n", "niña", "f"),
    ("horse", "Pferd", "n", "caballo", "m"), ("bird", "Vogel", "m", "pájaro", "m"),
    ("queen", "Königin", "f", "reina", "f"), ("king", "König", "m", "rey", "m"),
]
OBJECTS = [
    ("house", "Haus", "n", "casa", "f"), ("book", "Buch", "n", "libro", "m"),
    ("apple", "Apfel", "m", "manzana", "f"), ("car", "Auto", "n", "coche", "m"),
    ("table", "Tisch", "m", "mesa", "f"), ("flower", "Blume", "f", "flor", "f"),
    ("letter", "Brief", "m", "carta", "f"), ("bread", "Brot", "n", "pan", "m"),
    ("bridge", "Brücke", "f", "puente", "m"), ("key", "Schlüssel", "m", "llave", "f"),
    ("picture", "Bild", "n", "cuadro", "m"), ("lamp", "Lampe", "f", "lámpara", "f"),
    ("chair", "Stuhl", "m", "silla", "f"), ("door", "Tür", "f", "puerta", "f"),
    ("boat", "Boot", "n", "barco", "m"), ("tree", "Baum", "m", "árbol", "m"),
    ("shirt", "Hemd", "n", "camisa", "f"), ("clock", "Uhr", "f", "reloj", "m"),
]
# English, German stem (weak endings are added), Spanish masculine, Spanish feminine.
ADJECTIVES = [
    ("red", "rot", "rojo", "roja"), ("small", "klein", "pequeño", "pequeña"),
    ("old", "alt", "viejo", "vieja"), ("new", "neu", "nuevo", "nueva"),
    ("big", "groß", "grande", "grande"), ("white", "weiß", "blanco", "blanca"),
    ("black", "schwarz", "negro", "negra"), ("beautiful", "schön", "hermoso", "hermosa"),
    ("green", "grün", "verde", "verde"), ("good", "gut", "bueno", "buena"),
    ("yellow", "gelb", "amarillo", "amarilla"), ("strange", "seltsam", "extraño", "extraña"),
]
VERBS = [
    ("sees", "sieht", "ve"), ("buys", "kauft", "compra"), ("finds", "findet", "encuentra"),
    ("has", "hat", "tiene"), ("looks for", "sucht", "busca"), ("paints", "malt", "pinta"),
    ("loves", "liebt", "ama"), ("sells", "verkauft", "vende"), ("needs", "braucht", "necesita"),
    ("carries", "trägt", "lleva"),
]
WHERE = [
    ("in the garden", "im Garten", "en el jardín"), ("in the city", "in der Stadt", "en la ciudad"),
    ("at school", "in der Schule", "en la escuela"), ("at home", "zu Hause", "en casa"),
    ("in the forest", "im Wald", "en el bosque"), ("on the street", "auf der Straße", "en la calle"),
    ("at the market", "auf dem Markt", "en el mercado"), ("by the sea", "am Meer", "junto al mar"),
]

COUNTRIES = [
    ("France", "Paris", "Europe"), ("Germany", "Berlin", "Europe"), ("Spain", "Madrid", "Europe"),
    ("Italy", "Rome", "Europe"), ("Portugal", "Lisbon", "Europe"), ("Austria", "Vienna", "Europe"),
    ("Poland", "Warsaw", "Europe"), ("Norway", "Oslo", "Europe"), ("Sweden", "Stockholm", "Europe"),
    ("Finland", "Helsinki", "Europe"), ("Greece", "Athens", "Europe"), ("Ireland", "Dublin", "Europe"),
    ("Japan", "Tokyo", "Asia"), ("China", "Beijing", "Asia"), ("India", "New Delhi", "Asia"),
    ("Thailand", "Bangkok", "Asia"), ("Vietnam", "Hanoi", "Asia"), ("Egypt", "Cairo", "Africa"),
    ("Kenya", "Nairobi", "Africa"), ("Ghana", "Accra", "Africa"), ("Morocco", "Rabat", "Africa"),
    ("Canada", "Ottawa", "North America"), ("Mexico", "Mexico City", "North America"),
    ("Cuba", "Havana", "North America"), ("Brazil", "Brasilia", "South America"),
    ("Peru", "Lima", "South America"), ("Chile", "Santiago", "South America"),
    ("Argentina", "Buenos Aires", "South America"), ("Denmark", "Copenhagen", "Europe"),
    ("Hungary", "Budapest", "Europe"),
]
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("old", "young"),
    ("happy", "sad"), ("light", "dark"), ("open", "closed"), ("full", "empty"), ("hard", "soft"),
    ("rich", "poor"), ("early", "late"), ("wet", "dry"), ("left", "right"), ("high", "low"),
    ("strong", "weak"), ("good", "bad"), ("near", "far"), ("loud", "quiet"), ("clean", "dirty"),
]
ANIMALS = [  # animal, sound, young, legs
    ("dog", "barks", "puppy", "four"), ("cat", "meows", "kitten", "four"),
    ("cow", "moos", "calf", "four"), ("sheep", "bleats", "lamb", "four"),
    ("horse", "neighs", "foal", "four"), ("duck", "quacks", "duckling", "two"),
    ("hen", "clucks", "chick", "two"), ("lion", "roars", "cub", "four"),
    ("wolf", "howls", "pup", "four"), ("owl", "hoots", "owlet", "two"),
    ("pig", "grunts", "piglet", "four"), ("frog", "croaks", "tadpole", "four"),
    ("goat", "bleats", "kid", "four"), ("goose", "honks", "gosling", "two"),
]
