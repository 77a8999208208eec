"""The programs that the contract runs: small pairs whose exact gradient is known by brute force."""
