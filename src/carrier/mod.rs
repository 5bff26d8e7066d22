//! What moves streams between stub and agent.
