# What the files conf-*.t share: a block's section "conf" is a file of its own, included into http{},
# so that messages name its lines. Either it is refused or nginx starts with it:
#
#     refused    the [emerg] line, to the letter, from after the process to its end
#     warned     the same for a [warn] line
#     talk       what the API then says: see api-talk.pl
#
# There FILE is the path of the file, and ... stands for anything.

use strict;
use warnings;
use FindBin;

require "$FindBin::Bin/api-talk.pl";

sub log_line {
    my ($level, $text) = @_;
    $text =~ s/\s+\z//;
    my $file = html_dir() . '/http.conf';
    my $pattern = join '', map {
        $_ eq '...' ? '.*' : $_ eq 'FILE' ? quotemeta $file : quotemeta
    } split /(\.\.\.|\bFILE\b)/, $text;
    return qr/\[$level\] \d+#\d+: $pattern$/;
}

add_block_preprocessor(sub {
    my ($block) = @_;
    my $conf = $block->conf;
    return unless defined $conf;
    $conf =~ s/\$(TEST_NGINX_PORT_\d)/$ENV{$1}/g;
    $block->set_value(user_files => ">>> http.conf\n$conf");
    $block->set_value(http_config => 'include ' . html_dir() . '/http.conf;');
    my @lines;
    if (defined $block->refused) {
        $block->set_value(config => '') unless defined $block->config;
        $block->set_value(must_die => 1);
        push @lines, log_line('emerg', $block->refused);
    }
    push @lines, log_line('warn', $block->warned) if defined $block->warned;
    $block->set_value(error_log => \@lines) if @lines;
});

1;
