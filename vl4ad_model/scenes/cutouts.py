"""Cut-out pictures of hundreds of everyday things: Microsoft's Fluent emoji in 3-D style (MIT), named by Unicode.

The pictures come from the npm package `@lobehub/fluent-emoji-3d`; they are needed for rendering training scenes only and are
not part of this package. Unpack it and name its `assets` folder.
"""

from __future__ import annotations

import unicodedata
import zlib
from pathlib import Path

import numpy as np

from vl4ad_model.errors import SceneError
from vl4ad_model.scenes.hazards import HAZARD_TYPES

SIZE = 256
# Not things that can lie on a road, or known classes already.
_NOT_THINGS = (
    "FACE", "PERSON", "MAN", "WOMAN", "BOY", "GIRL", "CHILD", "BABY", "FAMILY", "COUPLE", "FLAG", "SIGN", "ARROW", "CLOCK", "BUTTON", "SQUARED",
    "CIRCLE", "SQUARE", "DIAMOND SHAPE", "HEART", "HAND", "FINGER", "FIST", "ZODIAC", "MOON", "SUN", "STAR", "EYE", "EAR", "NOSE", "MOUTH", "LIPS", "TONGUE",
    "FOOT", "LEG", "ARM", "BONE", "TOOTH", "BRAIN", "LUNGS", "WIND", "RAIN", "CLOUD", "SNOWFLAKE", "FIRE", "WATER WAVE", "RAINBOW", "COMET", "STARS", "SKY",
    "BRIDGE", "HOUSE", "BUILDING", "HOSPITAL", "BANK", "HOTEL", "SCHOOL", "STORE", "FACTORY", "CASTLE", "TOWER", "TEMPLE", "CHURCH", "MOSQUE", "SYNAGOGUE",
    "STADIUM", "TREE", "PALM", "LEAF", "HERB", "SEEDLING", "CACTUS", "BUS", "TAXI", "AUTOMOBILE", "CAR", "TRUCK", "TRAM", "TRAIN", "RAILWAY", "METRO",
    "MONORAIL", "BICYCLE", "MOTOR SCOOTER", "MOTORCYCLE", "LORRY", "VEHICLE", "AMBULANCE", "ENGINE", "FUEL", "TRAFFIC LIGHT", "STOP", "SYMBOL", "MARK", "KEYCAP",
    "SPEECH", "THOUGHT", "ANGER", "COLLISION", "DASH", "DROPLET", "SWEAT", "ZZZ", "NUMBER", "LETTER", "INPUT", "COPYRIGHT", "REGISTERED", "TRADE", "HAIR", "DANCER",
    "POLICE", "GUARD", "PRINCE", "ANGEL", "SANTA", "SUPER", "MAGE", "FAIRY", "VAMPIRE", "ELF", "GENIE", "ZOMBIE", "TROLL", "RUNNER", "SURFER", "ROWBOAT", "SWIMMER",
    "BUST", "SILHOUETTE", "SNOWMAN", "NINJA", "BRIDE", "HORSE RACING", "SKIER", "SNOWBOARDER", "GOLFER", "JUGGLING", "WRESTL", "LEVITAT", "SELFIE", "NAIL POLISH",
    "FLEXED", "CLAPPING", "PRAY", "WRITING", "PEOPLE", "MERMAID", "MERPERSON", "TROPHY MEDAL", "DIGIT", "INFINITY", "PLUS", "MINUS", "DIVISION", "MULTIPLICATION",
    "CHECK", "CROSS", "STATION", "WORKER", "LAUGHING", "BACKHAND", "POINTING", "TRIANGLE", "SUIT", "NIB", "ASTERISK", "VIBRATION",
    "COMPRESSION", "PISCES", "AQUARIUS", "CANCER", "SAGITTARIUS", "SCORPIUS", "CAPRICORN", "GEMINI", "ARIES", "TAURUS", "VIRGO", "LIBRA", "LEO", "EMBLEM", "MEDAL",
    "SHOWER", "CHRISTMAS", "SATELLITE", "AIRPLANE", "HELICOPTER", "MAHJONG", "PLAYING CARD", "POTTED PLANT", "LOCOMOTIVE", "RICE SCENE", "RADIO BUTTON", "REGIONAL", "ORTHODOX", "MENORAH", "PEACE", "YIN", "WHEEL OF", "ATOM", "OM", "SCENE", "SUNSET", "SUNRISE", "CITYSCAPE", "NIGHT",
    "VOLCANO", "MOUNT", "CAMPING", "BEACH", "DESERT", "ISLAND", "PARK", "JAPAN", "STATUE", "MAP", "GLOBE", "EARTH", "MILKY", "FOG", "CYCLONE", "TORNADO", "THERMOMETER",
    "ANT", "BUG", "BEETLE", "MOSQUITO", "FLY", "WORM", "MICROBE", "SPIDER WEB", "BLOSSOM", "FLOWER", "ROSE", "TULIP", "HIBISCUS", "BOUQUET", "FOOTPRINTS", "FINGERPRINT",
)  # fmt: skip
_NAMES = {
    "COUCH AND LAMP": "sofa", "SHOPPING TROLLEY": "shopping cart", "AUTOMOBILE WHEEL": "tyre", "OIL DRUM": "barrel", "SOCCER BALL": "football",
    "BASKETBALL AND HOOP": "basketball", "PACKAGE": "cardboard box", "LUGGAGE": "suitcase", "TENNIS RACQUET AND BALL": "tennis racket",
    "JACK-O-LANTERN": "pumpkin", "CONSTRUCTION SIGN": "road barrier", "BLACK UNIVERSAL RECYCLING SYMBOL": "recycling", "TELEVISION": "television",
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
        except ValueError:
            continue
        words = f" {unicode_name} "
        if any(f" {bad}" in words for bad in _NOT_THINGS):
            continue
        found.setdefault(_NAMES.get(unicode_name, unicode_name.lower().replace("-", " ")), path)
    if not found:
        raise SceneError(f"{folder} has no cut-outs: unpack the npm package @lobehub/fluent-emoji-3d and name its assets folder")
    return found


def is_held_out(name: str) -> bool:
    """Whether training must not see a cut-out: its name is a held-out type's, or one in six of the others by hash."""
    words = set(name.split())
    for hazard in HAZARD_TYPES:
        if hazard.held_out and any(set(term.split()) & words for term in (hazard.name, *hazard.synonyms, *hazard.unheard)):
            return True
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
