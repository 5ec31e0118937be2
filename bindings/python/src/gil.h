// gil.h - lets other Python threads run while this one is inside the library.
#pragma once

#include <Python.h>
#include <unistd.h>

namespace nixl::python {

// Gives the interpreter's lock up, and takes it back at the end of the scope.
//
// A daemon thread that comes back while the interpreter ends is thrown out of it by force. Letting
// that unwind through our frames would abort the process, so such a thread sleeps until the end.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace nixl::python
