"""Boards, and the wheels built for them."""
