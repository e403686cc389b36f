// Functions that the host and a GPU both run.
#pragma once

#ifdef __CUDACC__
#define PIXELFAST_BOTH __host__ __device__
#else
#define PIXELFAST_BOTH
#endif
