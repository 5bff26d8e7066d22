//! The wire protocol between stub and agent, without IO.
