"""Speed of dcube beside a plain reference written from the paper, which is also the oracle of the parity tests."""
