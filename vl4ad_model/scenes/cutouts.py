"""Cut-out pictures of hundreds of everyday things: Microsoft's Fluent emoji in 3-D style (MIT), named by Unicode.

The pictures come from the npm package `@lobehub/fluent-emoji-3d`; they are needed for rendering training scenes only and are
not part of this package. Unpack it and name its `assets` folder.
"""

from __future__ import annotations

import unicodedata
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from vl4ad_model.errors import SceneError
from vl4ad_model.scenes.hazards import HAZARD_TYPES

SIZE = 256
# Not things that can lie on a road, or known classes already.
_NOT_THINGS = (
    "ADULT", "AIRPLANE", "AMBULANCE", "ANGEL", "ANGER", "ANT", "AQUARIUS", "ARIES", "ARM", "ARROW", "ASTERISK", "ATOM",
    "AUTO RICKSHAW", "AUTOMOBILE", "BABY", "BACKHAND", "BAGGAGE CLAIM", "BANK", "BEACH", "BEETLE", "BICYCLE", "BICYCLIST",
    "BITING", "BLOSSOM", "BONE", "BOUQUET", "BOY", "BRAIN", "BREAST", "BRIDE", "BRIDGE", "BUBBLES", "BUG", "BUILDING", "BUS",
    "BUST", "BUTTON", "CACTUS", "CAMPING", "CANCELLATION", "CANCER", "CAPRICORN", "CAR", "CASTLE", "CHART", "CHECK", "CHILD",
    "CHRISTMAS", "CHURCH", "CINEMA", "CIRCLE", "CITYSCAPE", "CLAPPING", "CLOCK", "CLOUD", "COLLISION", "COMET",
    "COMPRESSION", "COPYRIGHT", "COUPLE", "CROSS", "CURLY", "CURRENCY", "CUSTOMS", "CYCLONE", "DANCER", "DASH", "DESERT",
    "DIAMOND", "DIAMOND SHAPE", "DIGIT", "DIRECT HIT", "DIVISION", "DNA", "DOUBLE CURLY", "DOUBLE VERTICAL", "DROPLET",
    "EAR", "EARTH", "ELEVATOR", "ELF", "EMBLEM", "ENGINE", "EUROPEAN POST", "EXTRATERRESTRIAL", "EYE", "FACE", "FACTORY",
    "FAIRY", "FAMILY", "FENCER", "FERRIS", "FINGER", "FINGERPRINT", "FIRE", "FIST", "FLAG", "FLEUR", "FLEXED", "FLOWER",
    "FLY", "FOG", "FOOT", "FOOTPRINTS", "FOUNTAIN", "FUEL", "GEMINI", "GENIE", "GHOST", "GIRL", "GLOBE", "GOLFER", "GUARD",
    "HAIR", "HAMSA", "HAND", "HEART", "HELICOPTER", "HERB", "HIBISCUS", "HOLE", "HORSE RACING", "HOSPITAL", "HOT SPRINGS",
    "HOTEL", "HOUSE", "HUT", "IMP", "INFINITY", "INFORMATION SOURCE", "INPUT", "ISLAND", "JAPAN", "JUGGLING", "KAABA",
    "KEYCAP", "KISS", "KNOBS", "LABEL", "LAUGHING", "LEAF", "LEFT LUGGAGE", "LEG", "LEO", "LETTER", "LEVITAT", "LIBRA",
    "LIGHT RAIL", "LIPS", "LOCOMOTIVE", "LORRY", "LOTUS", "LOW BATTERY", "LUNGS", "MAGE", "MAHJONG", "MAN", "MAP", "MARK",
    "MEDAL", "MENORAH", "MERMAID", "MERPERSON", "METRO", "MICROBE", "MILKY", "MINIBUS", "MINUS", "MOBILE PHONE OFF",
    "MONEY WITH", "MONORAIL", "MOON", "MOSQUE", "MOSQUITO", "MOTOR SCOOTER", "MOTORCYCLE", "MOTORWAY", "MOUNT", "MOUTH",
    "MULTIPLE MUSICAL", "MULTIPLICATION", "MUSICAL NOTE", "NAIL POLISH", "NIB", "NIGHT", "NINJA", "NO ENTRY", "NO MOBILE",
    "NO PEDESTRIANS", "NOSE", "NUMBER", "OLDER", "OM", "OPHIUCHUS", "ORTHODOX", "PALM", "PARK", "PASSPORT", "PEACE",
    "PEDESTRIAN", "PEOPLE", "PERFORMING", "PERSON", "PINE DECORATION", "PISCES", "PLACE OF WORSHIP", "PLAYING CARD", "PLUS",
    "POINTING", "POLICE", "POTTED PLANT", "PRAY", "PRINCE", "RADIO BUTTON", "RAILWAY", "RAIN", "RAINBOW", "REGIONAL",
    "REGISTERED", "RESTROOM", "RICE SCENE", "RINGED", "ROLLER COASTER", "ROSE", "ROWBOAT", "RUNNER", "SAGITTARIUS", "SANTA",
    "SATELLITE", "SCENE", "SCHOOL", "SCORPIUS", "SEEDLING", "SELFIE", "SHAMROCK", "SHINTO", "SHOWER", "SHRUG", "SIGN",
    "SILHOUETTE", "SKIER", "SKY", "SLEEPING", "SLEUTH", "SLIDER", "SNOWBOARDER", "SNOWFLAKE", "SNOWMAN", "SOUND WAVE",
    "SPARKLE", "SPEECH", "SPIDER WEB", "SQUARE", "SQUARED", "STADIUM", "STAFF OF", "STAR", "STARS", "STATION", "STATUE",
    "STOP", "STORE", "SUIT", "SUN", "SUNRISE", "SUNSET", "SUPER", "SURFER", "SWEAT", "SWIMMER", "SYMBOL", "SYNAGOGUE",
    "TAURUS", "TAXI", "TEMPLE", "THERMOMETER", "THOUGHT", "TONGUE", "TOOTH", "TORNADO", "TOWER", "TRADE", "TRAFFIC LIGHT",
    "TRAIN", "TRAM", "TREE", "TRIANGLE", "TROLL", "TROPHY MEDAL", "TRUCK", "TULIP", "VAMPIRE", "VEHICLE", "VIBRATION",
    "VIRGO", "VOLCANO", "WATER CLOSET", "WATER POLO", "WATER WAVE", "WEDDING", "WEIGHT LIFTER", "WHEEL OF", "WIND", "WOMAN",
    "WORKER", "WORM", "WRESTL", "WRITING", "X RAY", "X-RAY", "YIN", "ZODIAC", "ZOMBIE", "ZZZ",
)  # fmt: skip
_NAMES = {
    "COUCH AND LAMP": "sofa", "SHOPPING TROLLEY": "shopping cart", "AUTOMOBILE WHEEL": "tyre", "OIL DRUM": "barrel",
    "SOCCER BALL": "football", "BASKETBALL AND HOOP": "basketball", "PACKAGE": "cardboard box", "LUGGAGE": "suitcase",
    "TENNIS RACQUET AND BALL": "tennis racket", "JACK-O-LANTERN": "pumpkin", "CONSTRUCTION SIGN": "road barrier",
}  # fmt: skip


def names_of(folder: Path) -> dict[str, Path]:
    """name -> picture of every usable cut-out in a folder of pictures that are called by their code point.

    Raises:
        SceneError: the folder has no such pictures.
    """
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*.webp")) + sorted(Path(folder).glob("*.png")):
        code = path.stem.removesuffix("-fe0f")
        if "-" in code:
            continue  # sequences: flags, families, skin tones
        try:
            unicode_name = unicodedata.name(chr(int(code, 16)))
        except (ValueError, OverflowError):
            continue
        words = f" {unicode_name} "
        if any(f" {bad}" in words for bad in _NOT_THINGS):
            continue
        found.setdefault(_NAMES.get(unicode_name, unicode_name.lower().replace("-", " ")), path)
    if not found:
        raise SceneError(f"{folder} has no cut-outs: unpack the npm package @lobehub/fluent-emoji-3d and name its assets folder")
    return found


@cache
def is_held_out(name: str) -> bool:
    """Whether training must not see a cut-out: its name has a held-out type's in it, or it is one in six of the others by hash."""
    words = set(name.split())
    for hazard in HAZARD_TYPES:
        for term in (hazard.name, *hazard.synonyms, *hazard.unheard) if hazard.held_out else ():
            if set(term.split()) & words or (len(term) > 3 and term in name):  # a sailboat is a boat
                return True
    if any(name in (hazard.name, *hazard.synonyms, *hazard.unheard) for hazard in HAZARD_TYPES):
        return False  # a picture of a type that training knows
    return zlib.crc32(name.encode()) % 6 == 0


def load(paths: list[Path]) -> np.ndarray:
    """(n, 256, 256, 4) uint8 RGBA, premultiplied."""
    from PIL import Image

    pictures = np.zeros((len(paths), SIZE, SIZE, 4), np.uint8)
    for index, path in enumerate(paths):
        with Image.open(path) as image:
            picture = image.convert("RGBA")
        picture = picture.crop(picture.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox())
        side = max(picture.size)
        square = Image.new("RGBA", (side, side))
        square.paste(picture, ((side - picture.width) // 2, side - picture.height))  # it stands on the ground
        rgba = np.asarray(square.resize((SIZE, SIZE))).astype(np.float32)
        rgba[..., :3] = (rgba[..., :3] / 255) ** 2.2 * 255 * rgba[..., 3:] / 255
        pictures[index] = rgba
    return pictures
