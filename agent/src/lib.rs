//! Everything of Picket's agent that touches the world, one module per neighbour.

pub mod dataplane;
