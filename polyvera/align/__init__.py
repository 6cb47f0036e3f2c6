"""Whether two models see texts alike: mutual nearest neighbours of their layers' features."""
