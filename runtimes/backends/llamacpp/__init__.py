"""GGUF models through llama.cpp, in a process of its own: a failed assertion there ends only that process."""
