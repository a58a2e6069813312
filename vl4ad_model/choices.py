"""What scoring can be asked for, by name. Imports nothing: the command line and the node's parameters know it without torch."""

CLASSIFIERS = ("in_vocabulary", "out_of_vocabulary", "ensemble")
SCORINGS = ("max", "normalized")
