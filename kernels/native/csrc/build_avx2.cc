#define DOGFIT_LANES 8
#include "search.h"

namespace dogfit {
const Build kAvx2 = {"avx2", search, climb, evaluate};
}
