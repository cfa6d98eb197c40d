"""Makes `blackbox` importable for the suites of this folder, and shared by them."""
