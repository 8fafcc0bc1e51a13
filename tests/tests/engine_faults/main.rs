//! Faults to survive, over the real binaries, real git and a real engine: the server killed at any moment, full disks,
//! engines that stop, hang or lose power, damaged state, hostile builds, broken apps.
//!
//! After each fault [`world::is_sound`] holds: one current release, no container that nothing wants, a repository that
//! `git fsck` likes, the app served, and a next push that works. Where requests may not fail at all, a
//! [`world::Steady`] client asks all the while.
//!
//! All apps here are of the stack that [`tiny`] makes: a few megabytes, so that what is timed is Flex, a small file
//! system can hold it, and an engine of a test's own is given it in a second.

mod apps;
mod builds;
mod crash;
mod disk;
mod engine;
mod live_restore;
mod logs;
mod private;
mod proxy;
mod runs;
mod store;
mod tiny;
mod world;
