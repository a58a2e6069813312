"""VL4AD live: the ROS 2 lifecycle node `vl4ad_detector` and the replay evaluation. It imports vl4ad_model, never the reverse."""
