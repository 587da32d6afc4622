//! Placeholder until protocol.rs lands.
