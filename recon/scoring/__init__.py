"""One prediction against one truth: which numbers are computed, from what, and what was known beforehand.

`recon.eval` has the arithmetic; here recordings, depth maps, camera paths and surfaces are brought to it. The evaluation stage
and `recon eval` both come through here, so a run and a foreign prediction get the same numbers.
"""
