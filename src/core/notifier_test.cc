#include "core/notifier.h"

#include <gtest/gtest.h>

namespace nixl::core {
namespace {

metadata::Incarnation incarnation(uint8_t number) {
  metadata::Incarnation made;
  made.bytes[0] = number;
  return made;
}

TEST(Notifier, DeliversOnceAndInOrder) {
  Notifier sender("prefill", incarnation(1), 1 << 20), receiver("decode", incarnation(2), 1 << 20);
  const std::string first = sender.frame(metadata::kEnvelopeNotification, "decode", "one");
  const std::string second = sender.frame(metadata::kEnvelopeNotification, "decode", "");
  EXPECT_TRUE(receiver.receive(first));
  EXPECT_FALSE(receiver.receive(first)) << "again";
  EXPECT_TRUE(receiver.receive(second)) << "an empty message is one";
  EXPECT_FALSE(receiver.receive(first)) << "after a later one";
  EXPECT_FALSE(receiver.empty());
  const auto messages = receiver.take();
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].agent, "prefill");
  EXPECT_EQ(messages[0].message, "one");
  EXPECT_EQ(messages[1].message, "");
  EXPECT_TRUE(receiver.empty());
}

TEST(Notifier, ARestartedSenderStartsAnew) {
  Notifier old("a", incarnation(1), 1 << 20), fresh("a", incarnation(3), 1 << 20);
  Notifier receiver("b", incarnation(2), 1 << 20);
  for (int i = 0; i < 5; ++i)
    receiver.receive(old.frame(metadata::kEnvelopeNotification, "b", "old"));
  EXPECT_TRUE(receiver.receive(fresh.frame(metadata::kEnvelopeNotification, "b", "new")));
  EXPECT_EQ(receiver.take().size(), 6u);
}

TEST(Notifier, AFailureIsAnEventWithItsMessage) {
  Notifier sender("a", incarnation(1), 1 << 20), receiver("b", incarnation(2), 1 << 20);
  EXPECT_TRUE(receiver.receive(sender.frame(metadata::kEnvelopeFailure, "b", "request-7")));
  EXPECT_TRUE(receiver.take().empty());
  const auto events = receiver.takeEvents();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, Event::Kind::REMOTE_FAILURE);
  EXPECT_EQ(events[0].peer, "a");
  EXPECT_EQ(events[0].message, "request-7");
}

TEST(Notifier, UnreadBytesAreBounded) {
  Notifier sender("a", incarnation(1), 1 << 20), receiver("b", incarnation(2), 100);
  for (int i = 0; i < 10; ++i)
    receiver.receive(sender.frame(metadata::kEnvelopeNotification, "b", std::string(40, 'x')));
  EXPECT_EQ(receiver.take().size(), 2u);
  const auto events = receiver.takeEvents();
  ASSERT_EQ(events.size(), 1u) << "said once";
  EXPECT_EQ(events[0].kind, Event::Kind::NOTIFICATIONS_LOST);
  EXPECT_TRUE(receiver.receive(sender.frame(metadata::kEnvelopeNotification, "b", "again")));
  EXPECT_EQ(receiver.take().size(), 1u);
}

TEST(Notifier, OtherBytesAreDropped) {
  Notifier receiver("b", incarnation(2), 100);
  EXPECT_FALSE(receiver.receive("not a frame"));
  EXPECT_FALSE(receiver.receive(""));
  EXPECT_TRUE(receiver.take().empty());
}

}  // namespace
}  // namespace nixl::core
