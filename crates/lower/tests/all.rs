//! Regions and the descriptions that they become, on graphs of a few nodes.

mod all {
    mod common;
    mod regions;
    mod specs;
}
