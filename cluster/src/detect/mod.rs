//! Who is alive: what the fault detectors think, without their IO.
//!
//! A local fault detector (LFD) runs beside each server, launches it and heartbeats it. The global one (GFD) heartbeats
//! the LFDs and keeps the view. Neither is needed for serving.

pub mod accrual;
pub mod supervisor;
pub mod view;
