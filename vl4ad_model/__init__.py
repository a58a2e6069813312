"""VL4AD: from an RGB image and a vocabulary of words to a class map and an anomaly map. Imports no ROS."""

__version__ = "0.1.0"
