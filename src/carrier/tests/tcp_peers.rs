//! Peers over TCP that misbehave.
