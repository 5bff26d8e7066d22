//! The private side of the tunnel.
