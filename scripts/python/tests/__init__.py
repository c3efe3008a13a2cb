"""Tests of the Python package. They need the program, which `cargo build --release` builds."""
