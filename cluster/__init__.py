"""How to run it: planning, Ray, the result store and MLflow. The only package that imports Ray."""
