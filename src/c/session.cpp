// SPDX-License-Identifier: MIT
#include "src/c/objects.hpp"

using namespace flashmemory;

namespace {

/// A selector that goes with a sequence, or none, held with its store: which has to be the one that is asked for.
struct companion {
  c::hold select;
  fm_status why = FM_OK;

  companion(fm_selector* handle, const c::hold& store) noexcept
      : select(handle, c::kind::selector, "select", true, handle != nullptr) {
    if (!handle) return;
    why = select.why();
    if (select && select.as<c::selector_object>().store_slot != store.place())
      why = c::refuse(status::bad_argument, "select: serves another store");
  }
  selector* get() const noexcept { return select ? select.as<c::selector_object>().select.get() : nullptr; }
};

}  // namespace

fm_status fm_session_save(fm_store* store, fm_sequence sequence, const char* path, fm_selector* select,
                          const char* model_tag) {
  return c::guarded([&] {
    if (!path) return c::refuse(status::null_data, "path");
    const c::hold s(store, c::kind::store, "store", true);
    if (!s) return s.why();
    const companion with(select, s);
    if (with.why != FM_OK) return with.why;
    session_options session;
    if (model_tag) session.model_tag = model_tag;
    save_session(*s.as<c::store_object>().store, c::handle_of(sequence), path, with.get(), session);
    return fm_status(FM_OK);
  });
}

fm_status fm_session_load(fm_store* store, const char* path, fm_selector* select,
                          const fm_sequence_options* options, const char* model_tag, const fm_policy* policy,
                          fm_sequence* out) {
  return c::guarded([&] {
    if (!path) return c::refuse(status::null_data, "path");
    if (!out) return c::refuse(status::null_data, "out");
    fm_sequence_options o;
    fm_policy p;
    if (const fm_status code = c::read(options, c::default_sequence_options(), "options", &o); code != FM_OK)
      return code;
    if (const fm_status code = c::read(policy, c::default_policy(), "policy", &p); code != FM_OK) return code;
    const c::hold s(store, c::kind::store, "store", true);
    if (!s) return s.why();
    const companion with(select, s);
    if (with.why != FM_OK) return with.why;
    const selection_policy own = c::policy_of(p);
    session_options session;
    if (model_tag) session.model_tag = model_tag;
    if (policy) session.policy = &own;
    const sequence_options limits = options ? c::sequence_options_of(o) : sequence_options{};
    const sequence_handle h = load_session(*s.as<c::store_object>().store, path, with.get(), limits, session);
    *out = {h.index, h.generation};
    return fm_status(FM_OK);
  });
}
