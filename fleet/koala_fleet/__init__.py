"""Many pictures and many machines: files of prompts, and Ray where one machine is outgrown."""
