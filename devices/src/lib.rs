//! Kernels of Inlay and the devices that run them: CPU and Vulkan.
