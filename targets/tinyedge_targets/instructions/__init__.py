"""Which processor extensions machine code needs, read off the code itself."""
