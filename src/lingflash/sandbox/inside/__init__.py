"""What runs inside a jail: the standard library alone, under whatever Python the jail has."""
