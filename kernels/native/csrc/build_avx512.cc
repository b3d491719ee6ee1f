#define DOGFIT_LANES 16
#include "search.h"

namespace dogfit {
const Build kAvx512 = {"avx512", search, climb, evaluate};
}
