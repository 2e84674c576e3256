"""The routes of speaches with which its clients list, download and delete models."""
