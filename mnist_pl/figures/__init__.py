"""Figures: arrays -> pictures, the callbacks that draw them, and progress in the terminal."""
