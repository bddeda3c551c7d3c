"""What this machine is: its processor, memory, sensors and energy, and whether the installed llama.cpp fits it."""
