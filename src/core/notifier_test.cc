#include "core/notifier.h"

#include <gtest/gtest.h>

namespace nixl::core {
namespace {

metadata::Incarnation incarnation(uint8_t number) {
  metadata::Incarnation made;
  made.bytes[0] = number;
  return made;
}

using Received = Notifier::Received;

Received receive(Notifier& receiver, const std::string& frame) {
  return receiver.receive(*metadata::decodeEnvelope(frame));
}

TEST(Notifier, DeliversOnceAndInOrder) {
  Notifier sender("prefill", incarnation(1), 1 << 20), receiver("decode", incarnation(2), 1 << 20);
  const std::string first = sender.frame(metadata::kEnvelopeNotification, "decode", "one");
  const std::string second = sender.frame(metadata::kEnvelopeNotification, "decode", "");
  EXPECT_EQ(receive(receiver, first), Received::NEWS);
  EXPECT_EQ(receive(receiver, first), Received::NOTHING) << "again";
  EXPECT_EQ(receive(receiver, second), Received::NEWS) << "an empty message is one";
  EXPECT_EQ(receive(receiver, first), Received::NOTHING) << "after a later one";
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
    receive(receiver, old.frame(metadata::kEnvelopeNotification, "b", "old"));
  EXPECT_EQ(receive(receiver, fresh.frame(metadata::kEnvelopeNotification, "b", "new")), Received::NEWS);
  EXPECT_EQ(receiver.take().size(), 6u);
}

TEST(Notifier, AFailureIsAnEventWithItsMessage) {
  Notifier sender("a", incarnation(1), 1 << 20), receiver("b", incarnation(2), 1 << 20);
  EXPECT_EQ(receive(receiver, sender.frame(metadata::kEnvelopeFailure, "b", "request-7")), Received::NEWS);
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
    receive(receiver, sender.frame(metadata::kEnvelopeNotification, "b", std::string(40, 'x')));
  EXPECT_EQ(receiver.take().size(), 2u);
  const auto events = receiver.takeEvents();
  ASSERT_EQ(events.size(), 1u) << "said once";
  EXPECT_EQ(events[0].kind, Event::Kind::NOTIFICATIONS_LOST);
  EXPECT_EQ(receive(receiver, sender.frame(metadata::kEnvelopeNotification, "b", "again")), Received::NEWS);
  EXPECT_EQ(receiver.take().size(), 1u);
}

TEST(Notifier, WhatLibrariesSayIsNotForUsersAndHasNoOrderAmongTheirMessages) {
  Notifier sender("a", incarnation(1), 1 << 20), receiver("b", incarnation(2), 1 << 20);
  const std::string first = sender.frame(metadata::kEnvelopeControl, "b", "word");
  const std::string second = sender.frame(metadata::kEnvelopeNotification, "b", "text");
  EXPECT_EQ(receive(receiver, second), Received::NEWS);
  EXPECT_EQ(receive(receiver, first), Received::CONTROL);
  EXPECT_EQ(receive(receiver, second), Received::NOTHING);
  EXPECT_EQ(receive(receiver, sender.frame(200, "b", "of a later version")), Received::NOTHING);
  EXPECT_EQ(receiver.take().size(), 1u);
}

}  // namespace
}  // namespace nixl::core
