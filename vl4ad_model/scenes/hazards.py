"""The hazard types that scenes are made with: their names, their synonyms, and which of them no training ever sees."""

from __future__ import annotations

from typing import NamedTuple


class HazardType(NamedTuple):
    """A type of obstacle.

    Attributes:
        name: what it is called.
        synonyms: other names that training uses.
        unheard: synonyms that training never uses; they measure whether words, not labels, were learned.
        held_out: True for types whose pictures are in no training set.
    """

    name: str
    synonyms: tuple[str, ...]
    unheard: tuple[str, ...]
    held_out: bool


def _seen(name: str, synonyms: str, unheard: str = "") -> HazardType:
    return HazardType(name, _split(synonyms), _split(unheard), False)


def _held_out(name: str, synonyms: str, unheard: str = "") -> HazardType:
    return HazardType(name, _split(synonyms), _split(unheard), True)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|") if part.strip())


HAZARD_TYPES: tuple[HazardType, ...] = (
    _seen("tyre", "tire|rubber tyre|car tyre", "spare wheel"),
    _seen("cardboard box", "carton|box|parcel", "package"),
    _seen("traffic cone", "cone|pylon|road cone", "orange cone"),
    _seen("barrel", "drum|oil drum|oil barrel", "keg"),
    _seen("wooden pallet", "pallet|shipping pallet", "skid"),
    _seen("suitcase", "luggage|travel bag", "trolley case"),
    _seen("ball", "football|soccer ball|beach ball", "toy ball"),
    _seen("rock", "stone|boulder|rocks", "rubble"),
    _seen("tree trunk", "log|fallen tree|timber log", "tree stem"),
    _seen("chair", "seat|wooden chair|office chair", "stool"),
    _seen("table", "desk|wooden table", "dining table"),
    _seen("refrigerator", "fridge|freezer", "icebox"),
    _seen("washing machine", "washer|laundry machine", "tumble dryer"),
    _seen("garbage bag", "trash bag|bin bag|rubbish bag", "refuse sack"),
    _seen("trash can", "garbage can|dustbin|rubbish bin", "waste container"),
    _seen("shopping cart", "shopping trolley|supermarket cart", "grocery cart"),
    _seen("stroller", "baby carriage|pram|pushchair", "baby buggy"),
    _seen("dog", "puppy|hound", "canine"),
    _seen("cow", "cattle|bull|calf", "heifer"),
    _seen("deer", "stag|doe|roe deer", "fawn"),
    _seen("sheep", "lamb|ewe", "wether"),
    _seen("bucket", "pail|plastic bucket", "tub"),
    _seen("crate", "wooden crate|box crate|plastic crate", "storage crate"),
    _seen("umbrella", "parasol|open umbrella", "sunshade"),
    _seen("broken glass", "glass shards|shattered glass", "glass debris"),
    _seen("mattress", "bed mattress|foam mattress", "sleeping pad"),
    _seen("pipe", "metal pipe|tube|steel pipe", "conduit"),
    _seen("concrete block", "cement block|jersey barrier|concrete barrier", "breeze block"),
    _seen("road barrier", "barricade|roadblock|construction barrier", "road closure"),
    _seen("kick scooter", "e-scooter|electric scooter", "push scooter"),
    _seen("skateboard", "skate board|longboard", "roller board"),
    _seen("sandbag", "sand bag|sack of sand|sack", "flour bag"),
    _held_out("sofa", "couch|settee", "loveseat"),
    _held_out("ladder", "step ladder|folding ladder", "stepladder"),
    _held_out("wheelbarrow", "barrow|garden cart", "hand barrow"),
    _held_out("toilet", "toilet bowl|lavatory", "water closet"),
    _held_out("horse", "pony|mare", "stallion"),
    _held_out("boat", "rowing boat|dinghy", "canoe"),
    _held_out("piano", "upright piano|grand piano", "keyboard instrument"),
    _held_out("bathtub", "bath|bath tub", "tub for bathing"),
    _held_out("television", "tv|television set", "flat screen"),
    _held_out("teddy bear", "stuffed bear|plush toy", "stuffed animal"),
    _held_out("gas cylinder", "gas bottle|propane tank", "gas canister"),
    _held_out("pumpkin", "squash|orange pumpkin", "gourd"),
)
BY_NAME = {hazard.name: hazard for hazard in HAZARD_TYPES}
SEEN = tuple(hazard.name for hazard in HAZARD_TYPES if not hazard.held_out)
HELD_OUT = tuple(hazard.name for hazard in HAZARD_TYPES if hazard.held_out)
# Eight prompts that name no type above: what a careful person would try without knowing what lies on the road.
GENERIC_PROMPTS = (
    "obstacle|road obstacle",
    "debris|road debris",
    "lost cargo|fallen cargo",
    "animal|wild animal",
    "furniture|household furniture",
    "appliance|household appliance",
    "toy|plaything",
    "unknown object|strange object",
)
