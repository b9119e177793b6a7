"""The version of this project: the package's, and what exports and measurements record."""

VERSION = "0.1.0"
