//! Behaviour of an upstream client against a scripted server on loopback.
