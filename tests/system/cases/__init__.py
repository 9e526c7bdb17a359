"""What people really have, one small function per input: drawn as diffusers draws it, or refused in a sentence."""
