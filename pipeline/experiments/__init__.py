"""Many runs of a profile: its variants, and groups of them."""
