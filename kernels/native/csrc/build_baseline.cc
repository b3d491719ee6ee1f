#define DOGFIT_LANES 4
#include "search.h"

namespace dogfit {
const Build kBaseline = {"baseline", search, climb, evaluate};
}
