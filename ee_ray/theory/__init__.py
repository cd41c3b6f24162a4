"""The paper's two-layer linear network (section 5, appendix C), exactly and by simulation. Nothing of ee_ray needs it."""
