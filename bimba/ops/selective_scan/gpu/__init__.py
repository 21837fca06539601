"""The scan's Triton kernels. Nothing here is imported before it runs, so that a machine without Triton misses nothing.

How the work is dealt out, in all of them:

* A program is one warp. Backwards it scans ``BD`` = 32 neighbouring channels of one sample in one direction, each
  thread one channel with all its N states in registers: sums over states need no other thread, neighbouring threads
  read neighbouring channels, and a row of B or C serves the whole warp. Forwards it scans 8, each by ``PARTS`` = 4
  threads (see forward.py): a block of 32 channels then has four programs, and while one waits another computes.
* Both directions run in one launch. A direction is a part of the program's number; it changes addresses and no more.
* Chunks, blocks and tiles are counted in *steps*, the order of the scan: step s is at token s, or L - 1 - s where the
  scan runs backwards. ``forth``, 1 or -1, leads from a token, a row or a query to the next one.
* Long sequences are walked in tiles of ``T`` steps, whose decays do not wait for each other. Where there are too few
  programs to fill the GPU, the steps are cut into chunks (see chunks.py).
* States lie as programs use them, (..., C, BN, BD) float32: block of channels, state (BN is N filled up to a power of
  two), channel. ``unit``, the distance of two channels there, is always 1; it comes at run time, because the compiler
  would otherwise give each thread four neighbouring channels.
* Every offset into a tensor is 64 bits wide: 256 frames have more than 2^31 elements.
"""
