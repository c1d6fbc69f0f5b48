"""Forms of attention, the loss and the backward pass that hold less at a time, on any device."""
