//! The public side of the tunnel.
