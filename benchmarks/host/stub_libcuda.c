/* A CUDA driver with one device that accepts every launch and runs none: what Triton's own launcher links with.
   Pointers of the CPU pass for pointers of the device. stub_driver.py adds what else Triton links with. */
#include <stddef.h>
#include <stdint.h>

typedef int Result;
static void *const handle = (void *)1;

unsigned launches; /* since the library was loaded */

Result cuLaunchKernelEx(const void *config, void *function, void **arguments, void **extra) {
  launches++;
  return 0;
}

Result cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
  *(uint64_t *)value = pointer;
  return 0;
}

Result cuInit(unsigned flags) { return 0; }
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuGetErrorString(Result error, const char **text) { *text = "stub"; return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 227 << 10; return 0; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { *context = handle; return 0; }
Result cuCtxGetCurrent(void **context) { *context = handle; return 0; }
Result cuCtxGetDevice(int *device) { *device = 0; return 0; }
Result cuCtxSetCurrent(void *context) { return 0; }
Result cuCtxGetLimit(size_t *value, int limit) { *value = 0; return 0; }
Result cuCtxSetLimit(int limit, size_t value) { return 0; }
Result cuModuleLoadData(void **module, const void *image) { *module = handle; return 0; }
Result cuModuleUnload(void *module) { return 0; }
Result cuModuleGetFunction(void **function, void *module, const char *name) { *function = handle; return 0; }
Result cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Result cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
Result cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
Result cuFuncSetCacheConfig(void *function, int config) { return 0; }
