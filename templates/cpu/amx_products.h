//%# Which parts of a and b product p multiplies (0 is the most significant part), and which are new to the registers.
//%# Small products come first; each but the first shares one side with the one before it.
//%# 3 parts: lo*hi mid*hi mid*mid hi*mid hi*lo hi*hi. 2 parts: hi*lo lo*lo lo*hi hi*hi.
//% let three = parts == 3
//% let two = parts == 2
//% let part_a = three * (2 * (p == 0) + (p == 1 || p == 2)) + two * (p == 1 || p == 2)
//% let part_b = three * ((p == 2 || p == 3) + 2 * (p == 4)) + two * (p < 2)
//% let new_a = p == 0 || p == 1 || p == 3
//% let new_b = p == 0 || p == 2 || p == 4 || p == 5
