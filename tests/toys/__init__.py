"""Small models, data and commands that the tests of several areas share."""
